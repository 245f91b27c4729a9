"""Cohorts: lists of scans, a job for each scan, the files of their results, and workers in processes or on Ray."""
