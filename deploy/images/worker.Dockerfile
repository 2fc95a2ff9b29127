# syntax=docker/dockerfile:1
# A worker on any CPU.
#   docker build -f deploy/images/worker.Dockerfile -t sailq-worker .
FROM python:3.12.8-slim-bookworm AS build
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
    python -m pip --python /opt/sailq/bin/python install --no-compile '.[cpu]' && \
    python -m pip --python /opt/sailq/bin/python uninstall --yes av pillow pillow-heif
RUN /opt/sailq/bin/python -c "import sailq.worker.process.serve as serve, sailq.worker.engine.chat_tokenizer as text; \
    text.ChatTokenizer(text.ModelSpec.load(serve.resolve('sailq-tiny')))"

FROM python:3.12.8-slim-bookworm
RUN useradd --create-home --uid 10001 sailq
COPY --from=build /opt/sailq /opt/sailq
ENV PATH=/opt/sailq/bin:$PATH PYTHONUNBUFFERED=1
USER sailq
# SIGTERM lets the running jobs finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sailq"]
CMD ["worker"]
