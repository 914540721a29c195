"""Hosts: enrolment, approval, groups and operations."""
