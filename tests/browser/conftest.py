"""Chromium, driven, before a gateway with an archive. Debian has both: apt install chromium chromium-driver."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gateways import gateway, key_file
from selenium import webdriver

from sailq.producer.client import Client
from sailq.shared import keys
from sailq.shared.connection import connect


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core, which finds what people with disabilities cannot use."""
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, "axe-core@4"], check=True)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.fixture
def open_browser() -> Iterator[Callable[..., webdriver.Chrome]]:
    """Opens a Chromium with a window of this size. All are closed with the test."""
    with ExitStack() as stack:

        def begin(
            width: int = 1440, height: int = 900, *, dark: bool = False, language: str = "en-US"
        ) -> webdriver.Chrome:
            options = webdriver.ChromeOptions()
            for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                             f"--accept-lang={language}"):
                options.add_argument(argument)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
            stack.callback(browser.quit)
            browser.set_script_timeout(60)
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
                "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False,
            })
            if dark:
                scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            return browser

        yield begin


@pytest.fixture
def served_url(common_worker: str) -> str:
    """The URL of a database that a worker serves, without the results of other tests."""
    with connect(common_worker) as connection:
        connection.delete(keys.RESULTS)
    return common_worker


@pytest.fixture
def page(served_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of the page of a gateway without keys, with a worker behind it."""
    with gateway(served_url, tmp_path / "gateway.log", "--archive", tmp_path / "captions.db") as running:
        yield f"{running.url}/"


@pytest.fixture
def locked_page(served_url: str, tmp_path: Path) -> Iterator[str]:
    """The same with keys: sk-boss may see the page, sk-camera may not."""
    known = key_file(tmp_path / "keys.json", boss={"page": True}, camera={})
    arguments = ["--archive", tmp_path / "captions.db", "--keys", known]
    with gateway(served_url, tmp_path / "gateway.log", *arguments) as running:
        yield f"{running.url}/"


@pytest.fixture
def asking(served_url: str) -> Iterator[Client]:
    with Client(served_url) as client:
        yield client
