# syntax=docker/dockerfile:1
# A worker on any CPU.
#   docker build -f deploy/images/worker.Dockerfile -t sailq-worker .
FROM python:3.12.8-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY producer producer
COPY worker worker
RUN python -m venv /opt/sailq && /opt/sailq/bin/pip install --no-cache-dir '.[cpu]'

FROM python:3.12.8-slim-bookworm
RUN useradd --create-home --uid 10001 sailq
COPY --from=build /opt/sailq /opt/sailq
ENV PATH=/opt/sailq/bin:$PATH PYTHONUNBUFFERED=1
USER sailq
# SIGTERM lets the running jobs finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sailq"]
CMD ["worker"]
