def detect_table(text: str) -> str:
    return "csv"
