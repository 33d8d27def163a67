"""The program that Alertmanager notifies: it writes a log line for each alert, and passes notifications on."""
