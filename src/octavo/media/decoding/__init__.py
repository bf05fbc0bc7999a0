"""What runs in the helper process: bytes of strangers to pixels, samples and pages. Nothing else imports it."""
