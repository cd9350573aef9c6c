/** The REST API of the platform: KFP v2beta1, the model registry, and the dashboard's own reads. */

export interface RunMessage {
  run_id: string
  display_name: string
  description?: string
  experiment_id: string
  service_account?: string
  state: string
  created_at: string
  finished_at: string
  error?: { message?: string }
  runtime_config?: { parameters?: Record<string, unknown>; pipeline_root?: string }
  pipeline_spec?: PipelineSpec
  pipeline_version_reference?: { pipeline_id: string; pipeline_version_id: string }
}

export interface TaskView {
  task_id: string
  parent_task_id?: string
  display_name: string
  path: string
  name: string
  kind: string
  own_state: string
  note: string
  attempt: number
  pods: { name: string }[]
  created_at: string
  start_time?: string
  end_time?: string
  error?: { message?: string }
  /** What its component took of the machine. */
  usage?: { cpuSeconds?: number; maxRssBytes?: number } | null
  inputs?: Record<string, { artifact_ids: string[] }>
  outputs?: Record<string, { artifact_ids: string[] }>
  input_parameters: Record<string, unknown>
  output_parameters: Record<string, unknown>
}

export interface Artifact {
  artifact_id: string
  name: string
  type: string
  uri: string
  metadata?: Record<string, unknown>
  digest?: string
  size_bytes?: string
  created_at: string
  run_id?: string
  task_id?: string
}

export interface Experiment {
  experiment_id: string
  display_name: string
  description?: string
  created_at: string
}

export interface Pipeline {
  pipeline_id: string
  display_name: string
  description?: string
  created_at: string
}

export interface PipelineVersion {
  pipeline_version_id: string
  display_name: string
  description?: string
  created_at: string
  pipeline_spec?: PipelineSpec
}

export interface DagTask {
  taskInfo?: { name?: string }
  componentRef?: { name: string }
  dependentTasks?: string[]
  inputs?: { parameters?: Record<string, unknown>; artifacts?: Record<string, unknown> }
  parameterIterator?: unknown
  artifactIterator?: unknown
  triggerPolicy?: { condition?: string; strategy?: string }
}

export interface Component {
  dag?: { tasks?: Record<string, DagTask> }
  executorLabel?: string
}

export interface PipelineSpec {
  pipelineInfo?: { name?: string; description?: string }
  root?: Component
  components?: Record<string, Component>
  /** Present when platform settings travel beside the pipeline. */
  pipeline_spec?: PipelineSpec
}

export interface Endpoint {
  namespace: string
  name: string
  url: string
  ready: 'True' | 'False' | 'Unknown'
  reason: string
  message: string
  format: string
  runtime: string
  storage: string
  created_at: string
  pods: PodRow[]
}

interface Declared {
  kind: string
  namespace: string
  name: string
  state: string
  message: string
  created_at: string
  started_at: string
  ended_at: string
}

export interface PodRow {
  name: string
  phase: string
  ready: boolean
  restarts: number
}

export interface TrainingJob extends Declared {
  runtime: string
  progress: number | null
  left_s: number | null
  metrics: { name: string; value: number | null }[]
  pods: PodRow[]
}

export interface Trial extends Declared {
  parameters: Record<string, string>
  value: number | null
}

export interface Search extends Declared {
  algorithm: string
  metric: string
  maximize: boolean
  goal: number | null
  wanted: number | null
  trials: { succeeded: number; running: number; failed: number; stopped: number; total: number }
  best: Trial | null
}

export interface Overview {
  version: string
  web_url: string
  gateway_url: string
  content_url: string
  kubeconfig: string
  endpoints: { total: number; ready: number }
  pods: { total: number; running: number; pending: number; failed: number }
}

export interface RegisteredModel {
  id: string
  name: string
  description?: string
  state?: string
  owner?: string
  customProperties?: Properties
  lastUpdateTimeSinceEpoch: string
}

export interface ModelVersion extends RegisteredModel {
  registeredModelId: string
  author?: string
  createTimeSinceEpoch: string
}

export interface ModelArtifact {
  id: string
  name: string
  artifactType: string
  uri?: string
  modelFormatName?: string
  modelFormatVersion?: string
  value?: number | string
  customProperties?: Properties
}

export type Properties = Record<string, Record<string, unknown> & { metadataType: string }>

export interface Page<T> {
  rows: T[]
  next: string
  total: number
}

export class ApiProblem extends Error {
  constructor(readonly status: number, message: string) {
    super(message)
  }
}

async function problemOf(response: Response): Promise<ApiProblem> {
  const text = await response.text()
  try {
    const body = JSON.parse(text) as { message?: string; error?: string }
    return new ApiProblem(response.status, body.message ?? body.error ?? text)
  } catch {
    return new ApiProblem(response.status, text || response.statusText)
  }
}

export async function getJson<T>(path: string): Promise<T> {
  const response = await fetch(path, { headers: { Accept: 'application/json' } })
  if (!response.ok) throw await problemOf(response)
  return (await response.json()) as T
}

export async function post<T>(path: string, body?: string): Promise<T> {
  const response = await fetch(path, { method: 'POST', body, headers: { 'Content-Type': 'application/json' } })
  if (!response.ok) throw await problemOf(response)
  const text = await response.text()
  return (text ? JSON.parse(text) : {}) as T
}

let namespace = ''

/** Say which namespace lists are of; empty where there is one user. */
export function workIn(name: string): void {
  namespace = name
}

const inNamespace = () => (namespace ? `&namespace=${encodeURIComponent(namespace)}` : '')

const KFP = '/apis/v2beta1'
const REGISTRY = '/api/model_registry/v1'

async function kfpPage<T>(path: string, key: string): Promise<Page<T>> {
  const body = await getJson<Record<string, unknown>>(`${KFP}${path}`)
  return {
    rows: (body[key] as T[] | undefined) ?? [],
    next: (body.next_page_token as string | undefined) ?? '',
    total: (body.total_size as number | undefined) ?? 0,
  }
}

const only = (field: string, value: string) =>
  encodeURIComponent(JSON.stringify({ predicates: [{ key: field, operation: 'EQUALS', string_value: value }] }))

export const kfp = {
  runs: (options: { experiment?: string; state?: string; size?: number; token?: string }) =>
    kfpPage<RunMessage>(
      `/runs?view=SUMMARY&sort_by=${encodeURIComponent('created_at desc')}&page_size=${options.size ?? 25}` +
        (options.token ? `&page_token=${encodeURIComponent(options.token)}` : '') +
        (options.experiment ? `&experiment_id=${encodeURIComponent(options.experiment)}` : inNamespace()) +
        (options.state ? `&filter=${only('state', options.state)}` : ''),
      'runs',
    ),
  run: (id: string) => getJson<RunMessage>(`${KFP}/runs/${encodeURIComponent(id)}`),
  tasks: (id: string) =>
    getJson<{ run: RunMessage; outputs: Record<string, unknown>; tasks: TaskView[] }>(
      `${KFP}/runs/${encodeURIComponent(id)}/tasks`,
    ),
  watchUrl: (id: string) => `${KFP}/runs/${encodeURIComponent(id)}:watch`,
  logUrl: (run: string, task: string, attempt: number) =>
    `${KFP}/runs/${encodeURIComponent(run)}/tasks/${encodeURIComponent(task)}/log?follow=true&attempt=${attempt}`,
  terminate: (id: string) => post(`${KFP}/runs/${encodeURIComponent(id)}:terminate`),
  retry: (id: string) => post(`${KFP}/runs/${encodeURIComponent(id)}:retry`),
  /** Submit the same pipeline with the same parameters once more. */
  clone: ({ display_name, experiment_id, service_account, runtime_config, pipeline_spec, pipeline_version_reference }: RunMessage) =>
    post<RunMessage>(
      `${KFP}/runs`,
      JSON.stringify({
        display_name: `Clone of ${display_name.replace(/^(Clone of )+/, '')}`.slice(0, 255),
        experiment_id,
        service_account,
        runtime_config,
        ...(pipeline_version_reference ? { pipeline_version_reference } : { pipeline_spec }),
      }),
    ),
  experiments: () => kfpPage<Experiment>(`/experiments?page_size=200${inNamespace()}`, 'experiments'),
  experiment: (id: string) => getJson<Experiment>(`${KFP}/experiments/${encodeURIComponent(id)}`),
  pipelines: async () => {
    const path = `/pipelines?page_size=100&sort_by=${encodeURIComponent('created_at desc')}`
    const page = await kfpPage<Pipeline>(path + inNamespace(), 'pipelines')
    // With several users those without a namespace are everybody's.
    if (namespace) page.rows.push(...(await kfpPage<Pipeline>(path, 'pipelines')).rows)
    return page
  },
  pipeline: (id: string) => getJson<Pipeline>(`${KFP}/pipelines/${encodeURIComponent(id)}`),
  versions: (id: string) =>
    kfpPage<PipelineVersion>(
      `/pipelines/${encodeURIComponent(id)}/versions?page_size=100&sort_by=${encodeURIComponent('created_at desc')}`,
      'pipeline_versions',
    ),
  version: (pipeline: string, version: string) =>
    getJson<PipelineVersion>(`${KFP}/pipelines/${encodeURIComponent(pipeline)}/versions/${encodeURIComponent(version)}`),
  artifact: (id: string) => getJson<Artifact>(`${KFP}/artifacts/${encodeURIComponent(id)}`),
  downloadUrl: (id: string) => `${KFP}/artifacts/${encodeURIComponent(id)}:download`,
}

export const registry = {
  models: () => getJson<{ items: RegisteredModel[] }>(`${REGISTRY}/registered_models?pageSize=200&orderBy=LAST_UPDATE_TIME&sortOrder=DESC`),
  versions: (model: string) =>
    getJson<{ items: ModelVersion[] }>(`${REGISTRY}/registered_models/${model}/versions?pageSize=200&orderBy=ID&sortOrder=DESC`),
  artifacts: (version: string) =>
    getJson<{ items: ModelArtifact[] }>(`${REGISTRY}/model_versions/${version}/artifacts?pageSize=200`),
}

export interface Prediction {
  status: number
  latency_ms: number
  body: unknown
}

export interface Me {
  multi_user: boolean
  /** Empty where nobody is logged in. */
  user: string
  namespaces: string[]
}

export const ui = {
  me: () => getJson<Me>('/ui/v1/me'),
  login: (token: string) => post('/ui/v1/login', JSON.stringify({ token })),
  logout: () => post('/ui/v1/logout'),
  overview: () => getJson<Overview>('/ui/v1/overview'),
  endpoints: () => getJson<{ endpoints: Endpoint[] }>('/ui/v1/endpoints'),
  training: () => getJson<{ jobs: TrainingJob[] }>('/ui/v1/training'),
  searches: () => getJson<{ searches: Search[] }>('/ui/v1/searches'),
  search: (kind: string, namespace: string, name: string) =>
    getJson<{ search: Search; trials: Trial[] }>(`/ui/v1/searches/${kind}/${namespace}/${name}`),
  example: (namespace: string, name: string, protocol: string) =>
    getJson<{ body: unknown; source: string }>(`/ui/v1/endpoints/${namespace}/${name}/example?protocol=${protocol}`),
  predict: (namespace: string, name: string, protocol: string, body: string) =>
    post<Prediction>(`/ui/v1/endpoints/${namespace}/${name}:predict?protocol=${protocol}`, body),
}
