"""The worker process: its assembly, its reports to systemd, the server and Prometheus, and its watchdog."""
