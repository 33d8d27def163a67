"""frontend: the web page, and a JSON API for curl and load generators."""
