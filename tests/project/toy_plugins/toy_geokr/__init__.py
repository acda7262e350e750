"""A package of a user that brings one part of each kind."""
