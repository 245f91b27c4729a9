"""Cohorts: lists of scans, one job for each, the files of their results, and who works on them: processes or Ray."""
