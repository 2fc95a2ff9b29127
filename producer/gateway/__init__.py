"""An HTTP server with OpenAI's API in front of the queue. It keeps no state, so several may run."""
