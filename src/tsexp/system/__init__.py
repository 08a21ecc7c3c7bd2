"""The machine that this runs on: its CPU, files, locks, processes, signals and terminal.

Each module stands by itself and is imported as one; none knows of models, of measuring or of MLflow.
"""
