# The image that the chart and examples/ name. None is published yet: build it, push it to a registry of yours, and put that name into
# `image.repository` of the chart and `images:` of the examples' kustomization.yaml.
#
#     docker build -t registry.example/remit:0.1.0 .
FROM rust:1.95-slim-bookworm AS build
# SQLite and ring are compiled from C. cvc5 is the solver of proofs: it comes along with the libraries that the image below lacks.
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential cvc5 && rm -rf /var/lib/apt/lists/*
RUN install -D /usr/bin/cvc5 /solver/usr/bin/cvc5 && \
    ldd /usr/bin/cvc5 | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | grep -vE '/lib(c|m|gcc_s|stdc\+\+)\.so' | \
    while read -r library; do install -D "$library" "/solver/usr${library#/usr}"; done
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin remit && strip target/release/remit
# The fault points of src/fault.rs are for tests only.
RUN ! grep -q REMIT_FAULT target/release/remit

# glibc, libgcc and CA certificates; no shell. The same Debian as above, so that the C library is not older than the binary wants.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /solver/ /
COPY --from=build /src/target/release/remit /usr/local/bin/remit
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/remit"]
