"""What a run leaves behind: records, the sinks they go to, and tables over several runs."""
