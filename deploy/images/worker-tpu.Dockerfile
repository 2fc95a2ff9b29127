# syntax=docker/dockerfile:1
# A worker on a BM1684X: arm64 for a box (SE7), amd64 for a PCIe card.
#   docker buildx build -f deploy/images/worker-tpu.Dockerfile --build-context sail=WHEELS -t sailq-worker-tpu .
# WHEELS is a folder with one file, the sophon-sail wheel for Python 3.11 and this machine: SAIL is not on PyPI and
# wants building anew for each release of libsophon. libsophon itself stays outside: it must be the one that the
# machine's driver came with, so /opt/sophon is mounted. See deploy/se7 and deploy/pcie.
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY producer producer
COPY worker worker
COPY sailq sailq
# pip stays in this stage, and so does its cache. What reads clips is a producer's, and a worker imports none of it.
# Bytecode is made, below, of what a worker imports alone.
RUN python -m venv --without-pip /opt/sailq
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/sailq/bin/python install --no-compile '.[tpu]' && \
    python -m pip --python /opt/sailq/bin/python uninstall --yes av pillow pillow-heif
RUN --mount=type=bind,from=sail,target=/wheels \
    python -m pip --python /opt/sailq/bin/python install --no-compile --no-cache-dir --no-deps /wheels/*.whl
RUN /opt/sailq/bin/python -c "import sailq.worker.process.serve as serve, sailq.worker.engine.chat_tokenizer as prompt; \
    prompt.ChatTokenizer(prompt.ModelSpec.load(serve.resolve('sailq-tiny')))"

FROM python:3.11.11-slim-bookworm
# No group is needed: Sophgo's udev rules let everyone open the TPU's devices.
RUN useradd --create-home --uid 10001 sailq
COPY --from=build /opt/sailq /opt/sailq
ENV PATH=/opt/sailq/bin:$PATH PYTHONUNBUFFERED=1 LD_LIBRARY_PATH=/opt/sophon/libsophon-current/lib
USER sailq
# SIGTERM lets the running jobs finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sailq"]
CMD ["worker", "--device", "tpu:0"]
