"""The engine: data, models, scoring, evaluation. No command line and no HTTP."""
