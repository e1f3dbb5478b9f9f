"""What the kernels are compared with. Each function takes the inputs by name and gives the result."""
