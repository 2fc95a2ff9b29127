"""Files to run a fleet: set-up of boxes, images, monitoring, and `deploy.models`. They are not part of the package."""
