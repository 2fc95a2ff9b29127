# syntax=docker/dockerfile:1
# The client: `sailq caption`, `sailq ask`, `sailq gateway`, `sailq status`, `sailq exporter`, and the Python API for a backend.
# The gateway's packages are 21 MB of it, too few for an image of their own.
#   docker build -f deploy/images/producer.Dockerfile -t sailq-producer .
FROM python:3.12.8-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY producer producer
COPY worker worker
COPY operators operators
COPY sailq sailq
# pip and its cache stay in this stage.
RUN python -m venv --without-pip /opt/sailq
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/sailq/bin/python install '.[gateway]'

FROM python:3.12.8-slim-bookworm
# The folder is for the files and batches of a gateway.
RUN useradd --create-home --uid 10001 sailq && install --directory --owner sailq --mode 700 /var/lib/sailq
COPY --from=build /opt/sailq /opt/sailq
ENV PATH=/opt/sailq/bin:$PATH PYTHONUNBUFFERED=1
USER sailq
WORKDIR /media
ENTRYPOINT ["sailq"]
CMD ["status"]
