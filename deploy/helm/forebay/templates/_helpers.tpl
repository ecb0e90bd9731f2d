{{- define "forebay.labels" -}}
app.kubernetes.io/name: forebay
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "forebay.selector" -}}
app.kubernetes.io/name: forebay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "forebay.env" -}}
- name: FOREBAY_SERVER_BROKER
  valueFrom:
    secretKeyRef: {name: {{ .Values.broker.secretName }}, key: {{ .Values.broker.secretKey }}}
{{- if .Values.history.secretName }}
- name: FOREBAY_HISTORY_URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.history.secretName }}, key: {{ .Values.history.secretKey }}}
{{- end }}
{{- end }}

{{- define "forebay.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
{{- end }}

{{- define "forebay.volumes" -}}
- name: keys
  secret: {secretName: {{ .Values.keys.secretName }}, optional: true}
- name: tmp
  emptyDir: {}
- name: data
{{- if .Values.blobs.claimName }}
  persistentVolumeClaim: {claimName: {{ .Values.blobs.claimName }}}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}
