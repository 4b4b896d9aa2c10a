"""`python -m pipeline`."""

from common.cli import run_app
from pipeline.cli import app

run_app(app)
