"""Functions of tensors as graphs: recorded once, made smaller, compiled by inductor, run again and again."""
