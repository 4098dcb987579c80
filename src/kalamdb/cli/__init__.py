"""The command ``kalam``: ``main`` has the commands, ``sql`` the statement and the prompt, ``output`` how it talks."""
