"""Who may log in, and as what: ``authenticator`` decides, ``passwords`` hashes, ``lockout`` slows guessing."""
