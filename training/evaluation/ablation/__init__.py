"""The paper's ablation: rows of Table 1 over several seeds, measured, as tables."""
