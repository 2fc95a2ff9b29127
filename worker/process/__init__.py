"""A worker's process: put together, watched by systemd, shown to the server and to Prometheus."""
