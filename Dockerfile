# elven-sync as an image: a static place for the binary, a user without rights, no secrets. tzdata has the newest time
# zone rules whenever the image is built, also when the program is older.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/elven-sync /usr/local/bin/elven-sync
USER 10001:10001
ENTRYPOINT ["elven-sync"]
