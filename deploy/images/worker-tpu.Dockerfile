# syntax=docker/dockerfile:1
# A worker on a BM1684X: arm64 for a box (SE7), amd64 for a PCIe card.
#   docker buildx build -f deploy/images/worker-tpu.Dockerfile --build-context sail=WHEELS -t sailq-worker-tpu .
# WHEELS is a folder with one file, the sophon-sail wheel for Python 3.11 and this machine. SAIL is not on PyPI and must be
# built for each release of libsophon. libsophon is not in the image: it must match the machine's driver, so /opt/sophon is
# mounted. See deploy/se7 and deploy/pcie.
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY producer producer
COPY worker worker
COPY operators operators
COPY sailq sailq
# pip and its cache stay in this stage. The libraries that read clips are removed, because only producers use them. The last
# command of this stage makes the bytecode, only of the modules that a worker imports.
RUN python -m venv --without-pip /opt/sailq
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/sailq/bin/python install --no-compile '.[tpu]' && \
    python -m pip --python /opt/sailq/bin/python uninstall --yes av pillow pillow-heif
RUN --mount=type=bind,from=sail,target=/wheels \
    python -m pip --python /opt/sailq/bin/python install --no-compile --no-cache-dir --no-deps /wheels/*.whl
RUN /opt/sailq/bin/python -c "import sailq.worker.process.serve as serve, sailq.worker.engine.chat_tokenizer as text; \
    text.ChatTokenizer(text.ModelSpec.load(serve.resolve('sailq-tiny')))"

FROM python:3.11.11-slim-bookworm
# The user needs no group, because Sophgo's udev rules let everyone open the TPU's devices.
RUN useradd --create-home --uid 10001 sailq
COPY --from=build /opt/sailq /opt/sailq
ENV PATH=/opt/sailq/bin:$PATH PYTHONUNBUFFERED=1 LD_LIBRARY_PATH=/opt/sophon/libsophon-current/lib
USER sailq
# SIGTERM lets the running jobs finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sailq"]
CMD ["worker", "--device", "tpu:0"]
