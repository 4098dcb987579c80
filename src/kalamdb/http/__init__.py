"""HTTP beside the RPC port: ``app`` is what it answers, ``listener`` how it listens."""
