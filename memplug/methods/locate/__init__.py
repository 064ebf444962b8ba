"""Locate and edit: a hidden state that answers as edited, and the closed-form change that brings it about."""
