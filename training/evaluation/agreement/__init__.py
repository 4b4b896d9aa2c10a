"""Prompt agreement: does a generated clip sound like the class that its prompt names?"""
