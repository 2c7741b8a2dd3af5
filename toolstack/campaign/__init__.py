"""Fault runs: one is played, judged and reported; a campaign is many."""
