"""`recsys serve`, `recsys events` and `recsys compare`."""
