"""What `pipeinfer doctor` looks at. A check returns findings and raises nothing that it can foresee."""
