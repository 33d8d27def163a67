"""The code that runs in the browser, and the session's side of the connection to it."""
