"""What runs a fleet: set-up of boxes, images, monitoring, and `deploy.models`. It is not installed."""
