"""`python -m training`."""

from common.cli import run_app
from training.cli import app

run_app(app)
