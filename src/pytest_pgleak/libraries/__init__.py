"""The libraries whose connections and pools are watched: what is asked of them, and how their users write things."""
