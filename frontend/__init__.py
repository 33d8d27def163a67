"""frontend: the web page, and its JSON face for curl and load."""
