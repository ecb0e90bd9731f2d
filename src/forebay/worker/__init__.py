"""The worker process: leases jobs from the broker and runs them on an engine."""
