"""Keep the index in step with the served model, and run import jobs."""
