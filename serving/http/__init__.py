"""The wire: connections, routes, limits, keys and answers."""
