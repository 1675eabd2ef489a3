{{- /* The pod: the same whatever runs it. */}}
{{- define "remit.pod" -}}
metadata:
  labels:
    {{- include "remit.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or .Values.podAnnotations .Values.issuers }}
  annotations:
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .Values.issuers }}
    # Read at start: another list is another pod.
    remit.dev/issuers: {{ toYaml . | sha256sum }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: remit
  automountServiceAccountToken: true
  enableServiceLinks: false
  {{- if include "remit.replicated" . }}
  # Not ready any more, answering still, for 5 s; then up to 20 s for what is under way, 10 s for the journal, and some more.
  terminationGracePeriodSeconds: 60
  {{- else }}
  terminationGracePeriodSeconds: 45
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: remit
      image: {{ include "remit.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - operator
        - --listen=0.0.0.0:{{ .Values.ports.https }}
        - --webhook-listen=0.0.0.0:{{ .Values.ports.webhook }}
        - --metrics-listen=0.0.0.0:{{ .Values.ports.metrics }}
        - --data-dir=/var/lib/remit
        - --service-account=remit
        - --signatures={{ .Values.signatures }}
        - --max-staleness={{ .Values.maxStaleness }}
        {{- if include "remit.replicated" . }}
        # Until the last client and node have heard that this replica leaves.
        - --drain-seconds=5
        - --journal-cap-bytes={{ int64 .Values.postgres.journalCapBytes }}
        {{- end }}
        - --log-format={{ .Values.logFormat }}
        {{- with .Values.platformPackage }}
        - --platform-package={{ . }}
        {{- end }}
        {{- with .Values.dnsNames }}
        - --dns-names={{ join "," . }}
        {{- end }}
        {{- if .Values.issuers }}
        - --issuers=/etc/remit/issuers/issuers.yaml
        {{- end }}
      env:
        - name: REMIT_NAMESPACE
          valueFrom:
            fieldRef:
              fieldPath: metadata.namespace
        # Stands in Events as who reported them.
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- if include "remit.replicated" . }}
        - name: REMIT_POSTGRES_URL
          valueFrom:
            secretKeyRef:
              name: {{ .Values.postgres.existingSecret.name | default "remit-postgres" }}
              key: {{ if .Values.postgres.existingSecret.name }}{{ .Values.postgres.existingSecret.key }}{{ else }}url{{ end }}
        {{- end }}
      ports:
        - name: https
          containerPort: {{ .Values.ports.https }}
        - name: webhook
          containerPort: {{ .Values.ports.webhook }}
        - name: metrics
          containerPort: {{ .Values.ports.metrics }}
      startupProbe:
        httpGet:
          path: /livez
          port: metrics
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet:
          path: /livez
          port: metrics
        periodSeconds: 10
        timeoutSeconds: 5
      readinessProbe:
        httpGet:
          path: /readyz
          port: metrics
        periodSeconds: 2
        timeoutSeconds: 5
      resources: {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: data
          mountPath: /var/lib/remit
        - name: tmp
          mountPath: /tmp
        {{- if .Values.issuers }}
        - name: issuers
          mountPath: /etc/remit/issuers
          readOnly: true
        {{- end }}
  volumes:
    {{- if .Values.issuers }}
    - name: issuers
      configMap:
        name: remit-issuers
    {{- end }}
    {{- if include "remit.replicated" . }}
    # The journal. It is shipped to PostgreSQL within a second or so; what a lost node had not shipped is lost, and shows as missing.
    - name: data
      emptyDir:
        sizeLimit: {{ .Values.persistence.size }}
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 256Mi
  {{- if include "remit.replicated" . }}
  # One a node and a zone, as far as there are so many.
  topologySpreadConstraints:
    {{- range tuple "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "remit.selector" $ | nindent 10 }}
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
