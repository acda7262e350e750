"""The production stack as processes of one machine: what `make stack` starts, watches and stops.

`settings` reads the one settings file and makes the secret files, `services` is the table of services, `processes` starts and
stops them. The same settings, secrets, templates and commands make the compose file beside this folder.
"""
