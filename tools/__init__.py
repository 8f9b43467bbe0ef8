"""What only maintainers of this project run: results tables, benchmarks, torture, screenshots."""
