{{- define "petaflop.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "petaflop.fullname" -}}
{{- $name := include "petaflop.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that never change: selectors are made of them. Takes the root and a component. */ -}}
{{- define "petaflop.selectorLabels" -}}
app.kubernetes.io/name: {{ include "petaflop.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "petaflop.labels" -}}
{{ include "petaflop.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: petaflop
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "petaflop.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "petaflop.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "petaflop.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "petaflop.storeUri" -}}
{{- if not .Values.store.uri }}
{{- fail "store.uri must be set: where artifacts, checkpoints and logs go, such as s3://bucket/prefix" }}
{{- end }}
{{- .Values.store.uri | trimSuffix "/" }}
{{- end }}

{{- define "petaflop.ledgerUri" -}}
{{- .Values.ledger.uri | default (printf "%s/ledger" (include "petaflop.storeUri" .)) }}
{{- end }}

{{- /* What every Pod of ours is held to: Pod Security "restricted". */ -}}
{{- define "petaflop.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "petaflop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Credentials of store and ledger. Jobs get the store's; the ledger's own have names of their own. */ -}}
{{- define "petaflop.envFrom" -}}
{{- with .Values.store.credentialsSecret }}
- secretRef:
    name: {{ . }}
{{- end }}
{{- with .Values.ledger.credentialsSecret }}
- prefix: PETAFLOP_LEDGER_
  secretRef:
    name: {{ . }}
{{- end }}
{{- with .Values.extraEnvFrom }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Environment that every program of ours reads. */ -}}
{{- define "petaflop.env" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: PETAFLOP_LOG
  value: {{ .Values.log.level | quote }}
{{- with .Values.watchNamespaces }}
- name: PETAFLOP_WATCH_NAMESPACES
  value: {{ join "," . }}
{{- end }}
{{- if .Values.providerLabels }}
{{- $labels := list }}
{{- range $key, $value := .Values.providerLabels }}{{ $labels = append $labels (printf "%s=%s" $key $value) }}{{ end }}
- name: PETAFLOP_PROVIDER_LABELS
  value: {{ join "," $labels | quote }}
{{- end }}
{{- with .Values.store.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.store.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "petaflop.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.persistence.enabled }}
- name: data
  persistentVolumeClaim:
    claimName: {{ .Values.persistence.existingClaim | default (include "petaflop.fullname" .) }}
{{- end }}
{{- end }}

{{- define "petaflop.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.persistence.enabled }}
- name: data
  mountPath: /var/lib/petaflop
{{- end }}
{{- end }}

{{- /* Rights of one service account: `cluster` rules by ClusterRole; `namespaced` rules by the same
ClusterRole, or, with watchNamespaces, by a Role in each of them. */ -}}
{{- define "petaflop.rights" -}}
{{- $root := .root }}
{{- $name := .name }}
{{- $everywhere := not $root.Values.watchNamespaces }}
{{- if or .cluster $everywhere }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels:
    {{- include "petaflop.labels" . | nindent 4 }}
rules:
  {{- with .cluster }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- if $everywhere }}
  {{- .namespaced | trim | nindent 2 }}
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "petaflop.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ .serviceAccount }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- if not $everywhere }}
{{- $context := . }}
{{- range $namespace := $root.Values.watchNamespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- include "petaflop.labels" $context | nindent 4 }}
rules:
  {{- $context.namespaced | trim | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ $namespace }}
  labels:
    {{- include "petaflop.labels" $context | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $context.serviceAccount }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end }}
{{- end }}
