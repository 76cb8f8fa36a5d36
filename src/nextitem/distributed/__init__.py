"""Devices, and communication between the processes of a distributed run."""
