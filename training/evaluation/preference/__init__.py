"""A blind study: which of two models' clips do people prefer?"""
