"""From messages to a prompt: chat templates and the process that renders strangers' ones."""
