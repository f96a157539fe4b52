"""From events to shadow pages to facts to reports."""
