"""What operators use: fleet view, exporter, failed jobs, doctor. It imports neither producer nor worker."""
